//! The macro that turns the table of settings into types, metadata and a reader.

/// Declares all settings. Each row is one setting:
///
/// ```text
/// /// Documentation: of the field, of the flag in --help, and in docs/settings.md.
/// name: Type = default, in min..=max, expect "a value of this kind", check is_valid, flag "name" "VALUE";
/// name: Type, unset "what happens without it", derive default_value, …;
/// ```
///
/// `Type` implements [`SettingValue`](super::value::SettingValue) and decides how a value is written. Everything after the
/// type is optional, in this order; a setting needs a default or `unset`:
///
/// - `in`: the range of an integer;
/// - `expect`: the description of valid text in error messages;
/// - `check`: `fn(&str) -> bool`, for text that its type alone does not validate;
/// - `derive`: computes the value of an unset setting from the environment and other settings;
/// - `flag`: a separate flag, in addition to `--set`.
macro_rules! settings {
    ($(
        #[doc = $section_doc:literal]
        $section:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $name:ident: $Type:ty
                $(= $default:literal)?
                $(, unset $unset:literal)?
                $(, derive $derive:path)?
                $(, in $range:expr)?
                $(, expect $expect:literal)?
                $(, check $check:path)?
                $(, flag $flag:literal $value_name:literal)?
                ;
            )+
        }
    )+) => {
        /// All settings, validated.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Config {
            $(
                #[doc = $section_doc]
                pub $section: $Section,
            )+
        }

        $(
            #[doc = $section_doc]
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $(
                    $(#[doc = $doc])+
                    pub $name: $Type,
                )+
            }
        )+

        /// Every setting, section by section, in the order of the documentation.
        pub(super) static SETTINGS: &[Setting] = &[$($(
            Setting {
                section: stringify!($section),
                name: stringify!($name),
                path: concat!(stringify!($section), ".", stringify!($name)),
                section_doc: $section_doc,
                doc: concat!($($doc, "\n"),+),
                kind: <$Type as SettingValue>::KIND,
                default: optional!($(concat!($default))?),
                unset: optional!($($unset)?),
                range: optional!($($range)?),
                expect: optional!($($expect)?),
                check: optional!($($check)?),
                flag: optional!($(Flag { name: $flag, value_name: $value_name })?),
            },
        )+)+];

        impl Config {
            /// Reads every setting; `None` if the validator found problems.
            pub(super) fn read(validator: &mut Validator<'_>) -> Option<Self> {
                let mut settings = SETTINGS.iter();
                $(
                    $(let $name = validator.read(settings.next()?, optional!($($derive)?));)+
                    let $section = (|| Some($Section { $($name: $name?),+ }))();
                )+
                Some(Self { $($section: $section?),+ })
            }
        }
    };
}

/// `Some` of the argument, if there is one.
macro_rules! optional {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

pub(super) use {optional, settings};
