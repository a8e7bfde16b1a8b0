//! Tips for options that do not exist, but are keys of the configuration.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{
    program::Program,
    schema::{self, Part},
};

/// Adds a tip to the error about an unknown option of this process, if a key of the configuration has its name.
pub(super) fn with_tip<P: Program>(mut error: clap::Error) -> clap::Error {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if error.kind() == ErrorKind::UnknownArgument => option.clone(),
        _ => return error,
    };
    if let Some(setting) = setting::<P>(&unknown, &std::env::args_os().skip(1).collect::<Vec<_>>()) {
        let tip = format!("to set a key of the configuration, use '{setting}'");
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Returns the option that sets the key of the configuration that `unknown` names, such as `--batch-size` among `arguments`; none if there is no such
/// key, or the command takes no configuration.
fn setting<P: Program>(unknown: &str, arguments: &[OsString]) -> Option<String> {
    let name = unknown.strip_prefix("--")?.replace('-', "_");
    let schema = schema::schema::<P>();
    let schema = Part::of(&schema);
    let key = match schema.find(&name).is_empty() {
        false => name,
        true => {
            // A key of one table alone, such as `lr` of the optimizer.
            let mut tables = schema.keys().filter(|table| !schema.find(&format!("{table}.{name}")).is_empty());
            let table = tables.next().filter(|_| tables.next().is_none())?;
            format!("{table}.{name}")
        }
    };
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let command = arguments.first().filter(|first| !first.starts_with('-')).map(|first| &**first);
    let prefix = match command {
        Some("train" | "plan" | "compare" | "lr-find" | "config") => "",
        Some(_) => return None,
        None => "train ",
    };
    let at = arguments.iter().position(|argument| argument.split('=').next() == Some(unknown))?;
    let value = match arguments[at].split_once('=') {
        Some((_, value)) => Some(value),
        None => arguments.get(at + 1).map(|next| &**next).filter(|next| !next.starts_with('-')),
    };
    Some(format!("{prefix}-s {key}={}", value.unwrap_or("VALUE")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BuiltIn;

    #[test]
    fn options_that_are_keys_of_the_configuration_are_recognized() {
        let of = |line: &str, option: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            setting::<BuiltIn>(option, &arguments)
        };
        for (line, option, tip) in [
            ("train --epochs 2", "--epochs", "-s epochs=2"),
            ("train --batch-size=8 --quiet", "--batch-size", "-s batch_size=8"),
            ("compare --widths 1,2 --optimizer.lr 0.1", "--optimizer.lr", "-s optimizer.lr=0.1"),
            ("plan --lr", "--lr", "-s optimizer.lr=VALUE"),
            ("--steps 3", "--steps", "train -s steps=3"),
        ] {
            assert_eq!(of(line, option).as_deref(), Some(tip));
        }
        // No key, a key of several tables, and a command without a configuration.
        for (line, option) in
            [("train --colour red", "--colour"), ("train --kind mlp", "--kind"), ("eval --seed 2", "--seed")]
        {
            assert_eq!(of(line, option), None);
        }
    }
}
