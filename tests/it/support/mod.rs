//! What several tests need.

pub mod lake;
pub mod program;
pub mod redis_server;
