//! Load, for correctness: counts, names, what is left behind, memory within bounds, survival. How fast it goes is `cargo xtask bench`'s.

#[path = "load/churn.rs"]
mod churn;
#[path = "load/ends.rs"]
mod ends;
#[path = "load/fairness.rs"]
mod fairness;
#[path = "load/keep.rs"]
mod keep;
#[path = "load/lines.rs"]
mod lines;
#[path = "load/remains.rs"]
mod remains;
