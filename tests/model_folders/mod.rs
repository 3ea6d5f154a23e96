//! Model folders that are damaged, hostile or laid out in other ways.

mod cache;
mod disabled;
mod links;
mod manifest;
mod packed_file;
mod special_files;
mod templates;
