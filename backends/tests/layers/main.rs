//! The layers against finite differences, naive loops and hand-computed values.

mod composed;
mod contract;
mod images;
mod sequences;
mod threads;
mod vectors;

#[path = "../support/mod.rs"]
mod support;
