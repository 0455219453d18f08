//! What several tests need.

pub mod cutting_proxy;
pub mod lake;
pub mod program;
pub mod redis_server;
pub mod tmpfs;
