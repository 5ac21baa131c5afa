//! The router on real parts: HAProxy, Redis, PostgreSQL and mosquitto, on loopback addresses of their own.

mod daemon;
mod front;
mod names;
mod parts;
mod pki;
mod runtime;
