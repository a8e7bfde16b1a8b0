//! Compares the layers with finite differences, naive loops and values computed by hand.

mod candle_operations;
mod contract;
mod images;
mod in_graph;
mod sequences;
mod shared_threads;
mod threads;
mod vectors;

#[path = "../support/given.rs"]
mod support;
