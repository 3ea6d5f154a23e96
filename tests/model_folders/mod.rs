//! What the folder of a model can do to the server: damage, hostile files, and files in other places than usual.

mod cache;
mod disabled;
mod links;
mod manifest;
mod special_files;
mod templates;
