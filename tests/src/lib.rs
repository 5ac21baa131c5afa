//! The lab: the whole real system in one directory and in network namespaces of its own.
//!
//! One mechanism for the demo, the tests, the benchmarks and the fault suite. Certificates, devices, users and grants
//! are made by the product's own commands only.

pub mod accounts;
pub mod bench;
pub mod cgroup;
pub mod cli;
pub mod component;
pub mod control;
pub mod demo;
pub mod enter;
pub mod faults;
pub mod files;
pub mod interrupt;
pub mod lab;
pub mod network;
pub mod parts;
pub mod place;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod ready;
pub mod record;
pub mod root;
pub mod run;
pub mod setup;
pub mod simulate;
pub mod table;
pub mod testing;

pub use control::Action;
pub use lab::Lab;
pub use root::Root;
pub use setup::Options;
