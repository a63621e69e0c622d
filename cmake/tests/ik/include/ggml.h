int ggml_graph_compute();
