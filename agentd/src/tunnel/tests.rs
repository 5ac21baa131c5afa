//! The table of a tunnel's life.
