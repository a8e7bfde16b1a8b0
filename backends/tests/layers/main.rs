//! The layers against finite differences, naive loops and hand-computed values.

mod contract;
mod images;
mod sequences;
mod threads;
mod vectors;
