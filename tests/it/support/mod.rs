//! What several tests need.

pub mod crashing;
pub mod cutting_proxy;
pub mod lake;
pub mod program;
pub mod redis_server;
pub mod tmpfs;
pub mod world;
