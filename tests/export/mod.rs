//! `eka export`: adapters, GGUF files, weight formats, damaged sources, full disks, kills.

mod adapters;
mod cases;
mod damage;
mod disk;
mod fuzz;
mod gguf;
mod kill;
mod reproducible;
mod weight_formats;
