//! docs/dispatch.md quotes the thresholds of `dispatch`, whole and unchanged.

use std::path::Path;
use std::{env, fs};

use ggml_amx::dispatch;

/// Lines between which the tables stand.
const MARKERS: [&str; 2] = ["<!-- thresholds:begin -->\n", "<!-- thresholds:end -->\n"];

/// What the document has to say.
fn tables() -> String {
    let mut text = String::from(
        "| type | stored | multiplied here from rows | in place from rows | int8 tiles from rows | BF16 tiles from rows |\n\
         |---|---|---|---|---|---|\n",
    );
    let rows = |m: Option<usize>| m.map_or("never".to_string(), |m| m.to_string());
    for line in dispatch::lines() {
        let stored = if line.is_packed { "packed" } else { "plain" };
        let (in_place, int8) = (rows(line.min_m_in_place), rows(line.int8));
        text += &format!("| {} | {stored} | {} | {in_place} | {int8} | {} |\n", line.name, line.min_m, line.bf16);
    }
    text += "\n| threshold | value | what it decides |\n|---|---|---|\n";
    for (name, value, what) in dispatch::constants() {
        text += &format!("| `{name}` | {value} | {what} |\n");
    }
    text
}

#[test]
fn given_the_thresholds_then_the_document_quotes_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dispatch.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find(MARKERS[0]).expect("the first marker") + MARKERS[0].len();
    let end = text.find(MARKERS[1]).expect("the last marker");
    if env::var_os("GGML_AMX_UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{}{}{}", &text[..begin], tables(), &text[end..])).unwrap();
        return;
    }
    assert_eq!(text[begin..end], tables(), "run the tests with GGML_AMX_UPDATE_DOCS=1 and look at the difference");
}
