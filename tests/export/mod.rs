//! `eka export`: adapters, GGUF and PyTorch files, weight formats, damaged sources, full disks, kills.

mod adapters;
mod cases;
mod damage;
mod disk;
mod fuzz;
mod gguf;
mod kill;
mod reproducible;
mod torch_files;
mod weight_formats;
