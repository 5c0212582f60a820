//! Counters of a running engine, in memory that any program may read without disturbing it.
//!
//! The engine writes; its only cost is a store for each counter ten times a second, and one more for
//! each delivered block, which goes into a histogram. Readers copy the file as it is. What each number
//! means stands in the file itself, in JSON, so that readers need to know the layout alone:
//! `docs/monitoring.md` has it to the byte.

mod buckets;
mod file;
mod layout;
mod memory;
mod read;
mod write;

pub use buckets::{Buckets, Histogram};
pub use file::{DIRECTORY, WriteError};
pub use layout::{Describe, Field, Kind, Part};
pub use read::{ReadError, Series, Sheet, Value, list};
pub(crate) use write::{Builder, Counters, Writing, usual};

/// Declares a structure of counters: each field has its kind, and what is said of it in its documentation is
/// what readers of the counters are told.
macro_rules! counts {
    (
        $(#[$attributes:meta])*
        pub struct $name:ident {
            $(
                #[doc = $help:literal]
                $(#[doc = $more:literal])*
                $field:ident: $kind:ident,
            )*
        }
    ) => {
        $(#[$attributes])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                #[doc = $help]
                $(#[doc = $more])*
                pub $field: u64,
            )*
        }

        impl $name {
            /// The sum of both, number by number.
            #[must_use]
            pub fn plus(&self, other: &$name) -> $name {
                $name {
                    $($field: self.$field + other.$field,)*
                }
            }
        }

        impl $crate::counters::Describe for $name {
            const FIELDS: &'static [$crate::counters::Field] = &[
                $($crate::counters::Field {
                    name: stringify!($field),
                    help: concat!($help $(, $more)*),
                    kind: $crate::counters::Kind::$kind,
                },)*
            ];

            fn each(&self, mut value: impl FnMut(u64)) {
                $(value(self.$field);)*
            }
        }
    };
}
pub(crate) use counts;

#[cfg(test)]
mod tests;
