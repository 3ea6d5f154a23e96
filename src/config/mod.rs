//! Settings: one table defines them, four layers give their values, validation gives them types.
//!
//! ```text
//! settings_table ──► types, flags, documentation
//!
//! defaults ◄ file ◄ environment variables ◄ flags     each overrides the one before (layers)
//!     └──────────► merged ──► validate ──► Config
//! ```
//!
//! Every problem is reported at once, with its origin and what was expected. The rest of the program uses [`Config`] and
//! does not check again.

mod args;
mod checks;
mod declare;
mod defaults;
mod environment;
mod error;
mod layers;
mod lookup;
mod merged;
mod render;
mod sections;
mod setting;
mod settings;
mod settings_table;
#[cfg(test)]
mod tests;
mod types;
mod user_dirs;
mod validate;
mod value;

pub use self::{
    args::{ConfigArgs, SettingFlags},
    checks::is_log_level,
    error::{ConfigError, Problem},
    lookup::variables,
    render::reference,
    settings::Settings,
    settings_table::{
        Auth, Cluster, Config, Cors, Device, Engine, Limits, Log, Model, Models, OnnxRuntime, Queue, Recycle,
        Server, Tls, Trace, Watchdog,
    },
    types::{
        AffinityMode, Aliases, AnswerLimit, CacheDir, DefaultsFrom, DrainMode, Hosts, ListenAddress,
        ListenAddresses, LogFormat, MetricNames, Origins, QueueStorage, Secret, UnknownFields, UnknownValue,
    },
    user_dirs::{USER_STATE, UserDir},
};
