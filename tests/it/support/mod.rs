//! What several tests need.

pub mod redis_server;
