//! Enums whose variants index a counter and carry the name that users see.

/// Indices are part of the maps' layout. A new variant goes to the end; one of `Class` or `Family` needs another
/// `LAYOUT_VERSION` in any case, since their number is a dimension of arrays.
///
/// Declares an enum of consecutive `u8` discriminants with `ALL`, `COUNT`, `name`, `index` and `from_index`.
macro_rules! named {
    ($(#[$meta:meta])* $vis:vis enum $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        $vis enum $enum { $($(#[$doc])* $variant,)+ }

        impl $enum {
            /// Every variant, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many variants there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in tables, JSON and metrics.
            #[inline(always)]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What `then` makes of this value, each variant of which gets a copy of `then` in which it is a constant.
            #[inline(always)]
            pub fn constant<T>(self, then: impl Fn(Self) -> T) -> T {
                match self { $(Self::$variant => then(Self::$variant),)+ }
            }

            /// The variant with this index; `None` where there is none.
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                $(if index == Self::$variant as u32 { return Some(Self::$variant) })+
                None
            }

            /// The place in an array of [`Self::COUNT`] counters.
            #[inline(always)]
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl core::fmt::Display for $enum {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
