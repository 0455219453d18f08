//! Whole behaviours, with real servers.
