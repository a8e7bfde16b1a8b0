//! Keys of a configuration that exclude each other.

use toml::{Table, Value};

/// If the command line sets the second key of the table, the others are removed from the file's values. `key[]` is the key where its value is a list,
/// and `key=value` the key with this value.
const RIVALS: [(&str, &str, &[&str]); 21] = [
    ("strategy", "width", &["name", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "widths", &["name", "width", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "name", &["width", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "width_schedule", &["name", "width", "widths", "end_to_end_every", "adaptive", "follow[]", "follows"]),
    ("strategy", "adaptive", &["name", "width", "widths", "end_to_end_every", "width_schedule", "follow[]", "follows"]),
    ("strategy", "follow", &["follows"]),
    ("strategy", "follow[]", &["name", "width", "widths", "width_schedule", "adaptive"]),
    ("strategy", "follows", &["name", "width", "widths", "width_schedule", "adaptive", "follow"]),
    ("partition", "stages", &["units_per_stage"]),
    ("partition", "units_per_stage", &["stages"]),
    ("heads", "arch", &["archs"]),
    ("heads", "every", &["archs"]),
    ("heads", "archs", &["arch", "every"]),
    ("heads", "readout=own", &["readout_refresh"]),
    ("model", "preset", &["block", "stem", "stem_planes", "planes", "blocks", "width", "heads", "layers"]),
    ("model", "dims", &["hidden"]),
    ("model", "hidden", &["dims"]),
    ("data", "validation_path", &["validation_fraction"]),
    ("data", "validation_fraction", &["validation_path"]),
    ("", "epochs", &["steps"]),
    ("", "steps", &["epochs"]),
];

/// Pairs of a key with a value and keys that go with it.
const ALLIES: [(&str, &str, &[&str]); 1] = [("strategy", "name=interlock", &["width", "widths", "follow", "follows"])];

/// Removes from `table`, which is at the path `parent`, what contradicts `key = value`, except for the keys that are `asked` for too.
pub(super) fn remove(table: &mut Table, parent: &str, key: &str, value: &Value, asked: impl Fn(&str) -> bool) {
    // A preset beside keys that override it gives way to another preset.
    if (parent, key) == ("model", "preset") && table.contains_key(key) {
        return;
    }
    let is_set = |pattern: &str| match pattern.split_once('=') {
        Some((name, constant)) => name == key && value.as_str() == Some(constant),
        None => pattern == key || (value.is_array() && pattern.strip_suffix("[]") == Some(key)),
    };
    let mut allies = ALLIES.iter().filter(|(of, pattern, _)| *of == parent && is_set(pattern));
    let allies = allies.next().map_or(&[][..], |(_, _, keys)| keys);
    for (_, _, rivals) in RIVALS.iter().filter(|(of, pattern, _)| *of == parent && is_set(pattern)) {
        for rival in *rivals {
            let (name, only_lists) = rival.strip_suffix("[]").map_or((*rival, false), |name| (name, true));
            // A strategy's name does not remove the table of that strategy's own keys.
            let stays = asked(name)
                || allies.contains(&name)
                || value.as_str() == Some(name)
                || (only_lists && !table.get(name).is_some_and(Value::is_array));
            if !stays {
                table.remove(name);
            }
        }
    }
}
