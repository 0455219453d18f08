//! What several tests need.

pub mod crashing;
pub mod lake;
pub mod program;
pub mod proxy;
pub mod redis_server;
pub mod thin_disk;
pub mod tmpfs;
pub mod world;
