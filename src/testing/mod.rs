//! What tests of several floors share. Compiled for tests only.

pub mod bound;
mod hashes;
