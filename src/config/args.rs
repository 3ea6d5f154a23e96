//! Settings on the command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{setting::Setting, settings_table::SETTINGS};

/// Flags that choose the file and set settings.
///
/// Flags override environment variables (EKA_SERVER_PORT for server.port), which override the file, which overrides the
/// defaults.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Settings")]
pub struct ConfigArgs {
    /// File with settings [default: eka.toml in the working directory, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any setting, such as queue.max_jobs=8; can be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = split_setting)]
    pub set: Vec<(String, String)>,
    /// Print all settings with their origins, as a file that can be used with --config, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Flags of single settings.
    #[command(flatten)]
    pub flags: SettingFlags,
}

/// The flags that set one setting each, as the table of settings declares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingFlags(Vec<(&'static str, String)>);

impl SettingFlags {
    /// The value of the flag `--name`, if it was given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(flag, _)| *flag == name).map(|(_, value)| value.as_str())
    }

    /// Sets the flag `--name`, as if it were on the command line.
    pub fn set(&mut self, name: &'static str, value: String) {
        self.0.retain(|(flag, _)| *flag != name);
        self.0.push((name, value));
    }

    /// The flags that were given: setting, flag, value.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static Setting, &'static str, &str)> {
        let value = |setting, name| Some((setting, name, self.get(name)?));
        SETTINGS.iter().filter_map(move |setting| value(setting, setting.flag.as_ref()?.name))
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let flags = SETTINGS.iter().filter_map(|setting| Some((setting, setting.flag.as_ref()?)));
        // Values stay text here: an invalid one is then reported together with all other problems.
        flags.fold(command, |command, (setting, flag)| {
            let default = setting.default.or(setting.unset).unwrap_or("none");
            let help = plain(&format!("{} [default: {default}]", setting.summary()));
            command.arg(Arg::new(flag.name).long(flag.name).value_name(flag.value_name).help(help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let names = SETTINGS.iter().filter_map(|setting| Some(setting.flag.as_ref()?.name));
        let given = names.filter_map(|name| Some((name, matches.get_one::<String>(name)?.clone())));
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Markdown without the marks of code, which --help shows as they are.
fn plain(markdown: &str) -> String {
    markdown.replace('`', "")
}

impl ConfigArgs {
    /// Arguments for another process with the same settings, except for some flags (`("port", "0")`).
    #[must_use]
    pub fn arguments(&self, overrides: &[(&str, &str)]) -> Vec<OsString> {
        let is_kept = |flag: &str| !overrides.iter().any(|(other, _)| *other == flag);
        let kept = self.flags.given().filter(|(_, flag, _)| is_kept(flag));
        let mut arguments: Vec<OsString> =
            kept.map(|(_, flag, value)| format!("--{flag}={value}").into()).collect();
        if let Some(file) = &self.config {
            arguments.extend(["--config".into(), file.clone().into_os_string()]);
        }
        arguments.extend(self.set.iter().map(|(path, value)| format!("--set={path}={value}").into()));
        arguments.extend(overrides.iter().map(|(flag, value)| format!("--{flag}={value}").into()));
        arguments
    }
}

fn split_setting(setting: &str) -> Result<(String, String), String> {
    let (path, value) =
        setting.split_once('=').ok_or("expected section.key=value, such as queue.max_jobs=8")?;
    Ok((path.trim().to_owned(), value.to_owned()))
}
