//! Types that a setting can have.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
};

use clap::ValueEnum;
use config::ValueKind;

use super::{
    setting::Kind,
    types::{
        AffinityMode, Aliases, AnswerLimit, CacheDir, DefaultsFrom, DrainMode, Hosts, ListenAddresses,
        LogFormat, MetricNames, Origins, QueueStorage, Secret, UnknownFields,
    },
};
use crate::{
    device_spec::{
        BlockSize, CacheChoice, Devices, DevicesError, PackedFileChoice, Pooling, Verify, WeightFormat,
    },
    trim_policy::{TrimPolicy, TrimPolicyError},
    units::{Bytes, Millis, Ratio, Tokens},
};

/// What was expected instead of a value; `None` for the setting's general description.
pub(super) type Expected = Option<String>;

/// A type that a setting can have.
pub(super) trait SettingValue: Sized {
    /// How its values are written.
    const KIND: Kind;

    /// Converts a value of this kind.
    ///
    /// # Errors
    /// What was expected instead.
    fn from_value(value: &ValueKind) -> Result<Self, Expected>;

    /// The value of an unset setting, for types that have one.
    fn unset() -> Option<Self> {
        None
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    const KIND: Kind = T::KIND;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        T::from_value(value).map(Some)
    }

    fn unset() -> Option<Self> {
        Some(None)
    }
}

impl SettingValue for bool {
    const KIND: Kind = Kind::Boolean;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        if let ValueKind::Boolean(is) = value { Ok(*is) } else { Err(None) }
    }
}

impl SettingValue for Ratio {
    const KIND: Kind = Kind::Number;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        let number = match value {
            ValueKind::Float(number) => Some(*number),
            ValueKind::I64(number) => i32::try_from(*number).ok().map(f64::from),
            _ => None,
        };
        number.and_then(Self::new).ok_or(None)
    }
}

/// Integers, each with its conversion from a primitive integer.
macro_rules! integers {
    ($($Type:ty: $Primitive:ty, $convert:expr;)+) => {$(
        impl SettingValue for $Type {
            const KIND: Kind = Kind::Integer;

            fn from_value(value: &ValueKind) -> Result<Self, Expected> {
                let ValueKind::I64(number) = value else { return Err(None) };
                <$Primitive>::try_from(*number).ok().and_then($convert).ok_or(None)
            }
        }
    )+};
}

integers! {
    u16: Self, Some;
    u32: Self, Some;
    u64: Self, Some;
    usize: Self, Some;
    Bytes: u64, |n| Some(Self(n));
    Millis: u64, |n| Some(Self(n));
    Tokens: usize, |n| Some(Self(n));
    NonZeroU32: u32, Self::new;
    NonZeroUsize: usize, Self::new;
}

impl SettingValue for AnswerLimit {
    const KIND: Kind = Kind::IntegerOrWord;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        match value {
            ValueKind::String(word) if word == "context" => Ok(Self::Context),
            value => Tokens::from_value(value).map(Self::Tokens),
        }
    }
}

impl SettingValue for BlockSize {
    const KIND: Kind = Kind::Integer;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        usize::from_value(value)?.try_into().map_err(|_| Some("32, 64 or 128".into()))
    }
}

/// Enums whose values are words.
macro_rules! words {
    ($($Type:ty)+) => {$(
        impl SettingValue for $Type {
            const KIND: Kind = Kind::Text;

            fn from_value(value: &ValueKind) -> Result<Self, Expected> {
                <Self as ValueEnum>::from_str(&String::from_value(value)?, false).map_err(|_| None)
            }
        }
    )+};
}

words! { AffinityMode DefaultsFrom DrainMode LogFormat MetricNames Pooling QueueStorage UnknownFields WeightFormat }

/// Types that are parsed from text, optionally with the value of an unset setting.
macro_rules! text {
    ($($Type:ty $(= $unset:expr)?;)+) => {$(
        impl SettingValue for $Type {
            const KIND: Kind = Kind::Text;

            fn from_value(value: &ValueKind) -> Result<Self, Expected> {
                parse(value).map_err(|_| None)
            }

            $(
                fn unset() -> Option<Self> {
                    Some($unset)
                }
            )?
        }
    )+};
}

text! {
    String;
    IpAddr;
    Verify;
    CacheChoice;
    PackedFileChoice;
    Hosts = Self::default();
    Origins = Self::default();
    Aliases = Self::default();
    ListenAddresses = Self::default();
}

impl SettingValue for Devices {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        parse(value).map_err(|error: Option<DevicesError>| match error? {
            DevicesError::Word(_) => None,
            error => Some(format!("a list of devices: {error}")),
        })
    }
}

impl SettingValue for TrimPolicy {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        parse(value).map_err(|error: Option<TrimPolicyError>| match error? {
            TrimPolicyError::Word { .. } => None,
            error => Some(format!("a trim policy: {error}")),
        })
    }
}

impl SettingValue for PathBuf {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        let path = String::from_value(value)?;
        if path.is_empty() { Err(None) } else { Ok(path.into()) }
    }
}

impl SettingValue for CacheDir {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        PathBuf::from_value(value).map(Self::configured)
    }
}

impl SettingValue for Secret {
    const KIND: Kind = Kind::Secret;

    fn from_value(value: &ValueKind) -> Result<Self, Expected> {
        let secret = String::from_value(value)?;
        if secret.trim().is_empty() { Err(None) } else { Ok(Self(secret)) }
    }
}

/// Parses text; `Err(None)` for a value that is not text.
fn parse<T: FromStr>(value: &ValueKind) -> Result<T, Option<T::Err>> {
    let ValueKind::String(text) = value else { return Err(None) };
    text.parse().map_err(Some)
}
