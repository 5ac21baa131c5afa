//! The stores, each of which may be several machines: PostgreSQL with stand-bys, Redis with Sentinels.
//!
//! Neither is failed over by us: whoever promotes a stand-by does so, and the daemons find it. And how long they take, for Prometheus.

mod latency;
pub mod postgres;
pub mod redis;
mod url;

pub use latency::Latency;
pub use postgres::Postgres;
pub use redis::{Redis, RedisFiles};
pub use url::{StoreUrl, UrlError};
