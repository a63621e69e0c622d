extern "C" int plugin_entry();

int main() {
    return plugin_entry();
}
