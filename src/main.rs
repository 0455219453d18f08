//! The `gigamerge` program.

fn main() {}
