//! Models and decoding: architectures, drafts, caches, memory pools.

mod adapters;
mod architectures;
mod demo_answers;
mod device_pool;
mod draft_model;
mod exactness;
mod experts;
mod kv_cache_growth;
mod prefix_cache;
mod saved_prompts;
mod speculation;
mod together;
