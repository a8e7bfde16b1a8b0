//! The vector instructions that kernels use.

use std::{env::VarError, fmt, sync::OnceLock};

use interlock::{Error, Result};

#[cfg(target_arch = "x86_64")]
use super::tiles;

/// The vector instructions that the kernels use: the best that the processor has, unless `INTERLOCK_CPU_INSTRUCTIONS` names weaker ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// Instructions that every processor has.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// 512-bit vectors.
    Avx512,
    /// 512-bit vectors, and AMX tiles for products of `bf16`.
    Amx,
}

/// The environment variable that limits the instructions.
const VARIABLE: &str = "INTERLOCK_CPU_INSTRUCTIONS";

impl Instructions {
    /// Returns the instructions that the kernels of this process use.
    pub fn in_use() -> Self {
        static IN_USE: OnceLock<Instructions> = OnceLock::new();
        *IN_USE.get_or_init(|| {
            let best = Self::of_the_processor();
            Self::requested().ok().flatten().map_or(best, |requested| requested.min(best))
        })
    }

    /// Returns the best instructions of this processor.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of_the_processor() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match avx2 {
            true if is_x86_feature_detected!("avx512f") && tiles::are_available() => Self::Amx,
            true if is_x86_feature_detected!("avx512f") => Self::Avx512,
            true => Self::Avx2,
            false => Self::Portable,
        }
    }

    /// Returns the best instructions of this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn of_the_processor() -> Self {
        Self::Portable
    }

    /// Returns the limit that `INTERLOCK_CPU_INSTRUCTIONS` sets on the instructions, or none if it is not set.
    ///
    /// # Errors
    /// If it names unknown instructions.
    pub fn requested() -> Result<Option<Self>> {
        match std::env::var(VARIABLE) {
            Ok(name) => Self::named(&name).map(Some),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(name)) => Self::named(&name.to_string_lossy()).map(Some),
        }
    }

    fn named(name: &str) -> Result<Self> {
        let unknown = || {
            Error::invalid(VARIABLE, format!("unknown instructions {name:?}"), "write portable, avx2, avx512 or amx")
        };
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx]
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(unknown)
    }

    /// Returns the name: `portable`, `avx2`, `avx512` or `amx`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `dispatch! { unsafe fn name(arguments) -> result = body }` defines `name`, which calls the generic `body::<L>` as compiled for
/// [`Instructions::in_use`]. The safety conditions of `name` are those of `body`.
macro_rules! dispatch {
    ($(#[$attribute:meta])* $visible:vis unsafe fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:ident) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visible unsafe fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($argument: $type),*) $(-> $result)? {
                // SAFETY: as demanded of the caller; the lanes' instructions are enabled here.
                unsafe { $body::<$crate::kernels::lanes::Avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $type),*) $(-> $result)? {
                // SAFETY: as demanded of the caller; the lanes' instructions are enabled here.
                unsafe { $body::<$crate::kernels::lanes::Avx2>($($argument),*) }
            }
            // SAFETY: as demanded of the caller; instructions are in use only where the processor has them.
            unsafe {
                match $crate::kernels::Instructions::in_use() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::Instructions::Avx512 | $crate::kernels::Instructions::Amx => avx512($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernels::Instructions::Avx2 => avx2($($argument),*),
                    _ => $body::<$crate::kernels::lanes::Portable>($($argument),*),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_read_and_others_are_refused() {
        for known in [Instructions::Portable, Instructions::Avx2, Instructions::Avx512, Instructions::Amx] {
            assert_eq!(Instructions::named(known.name()).unwrap(), known);
        }
        for unknown in ["avx-2", "AVX2", "sse", ""] {
            let error = Instructions::named(unknown).unwrap_err().to_string();
            let expected = "INTERLOCK_CPU_INSTRUCTIONS: unknown instructions";
            assert_eq!(error, format!("{expected} {unknown:?}; write portable, avx2, avx512 or amx"));
        }
        assert!(Instructions::in_use() <= Instructions::of_the_processor());
    }
}
