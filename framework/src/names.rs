//! Names that are nearly right, for messages about names that are wrong.

/// Returns the `count` names that are most like `pattern`, nearest first; names that are equally like it stay in their order. In the pattern, `*` stands
/// for any letters and `?` for one.
pub fn nearest<'a>(pattern: &str, names: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let mut names: Vec<(usize, &str)> = names.into_iter().map(|name| (distance(pattern, name), name)).collect();
    names.sort_by_key(|&(distance, _)| distance);
    names.dedup();
    names.into_iter().take(count).map(|(_, name)| name).collect()
}

/// Returns the name that `wrong` probably stands for: the nearest one, if at most a third of its letters differ.
pub fn misspelt<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = *nearest(wrong, names, 1).first()?;
    (3 * distance(wrong, name) <= name.chars().count()).then_some(name)
}

/// Returns the least number of letters to add, remove or replace that turns one into the other.
fn distance(pattern: &str, name: &str) -> usize {
    let name: Vec<char> = name.chars().collect();
    // The distances of the pattern so far to each beginning of the name.
    let mut row: Vec<usize> = (0..=name.len()).collect();
    for letter in pattern.chars() {
        let mut next = vec![row[0] + usize::from(letter != '*')];
        for (at, &other) in name.iter().enumerate() {
            next.push(match letter {
                '*' => row[at + 1].min(next[at]),
                _ => {
                    let replaced = row[at] + usize::from(letter != other && letter != '?');
                    replaced.min(row[at + 1] + 1).min(next[at] + 1)
                }
            });
        }
        row = next;
    }
    row[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters_and_wildcards_are_free() {
        for (pattern, name, expected) in [
            ("fc.weihgt", "fc.weight", 2),
            ("fc.weight", "fc.weight", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("*", "anything", 0),
            ("*.bias", "layers.0.bias", 0),
            ("layer.*.weight", "layers.0.weight", 1),
            ("laeyrs.?.bias", "layers.0.bias", 2),
            ("seeed", "seed", 1),
        ] {
            assert_eq!(distance(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn nearest_names_come_first_and_only_similar_ones_are_suggested() {
        let names = ["momentum", "lr", "weight_decay", "nesterov"];
        assert_eq!(nearest("momentun", names, 1), ["momentum"]);
        assert_eq!(misspelt("weigth_decay", names), Some("weight_decay"));
        assert_eq!(misspelt("colour", names), None);
        assert_eq!(misspelt("x", []), None);
        assert_eq!(
            nearest("head.*.biass", ["a.weight", "head.0.bias", "head.1.bias"], 2),
            ["head.0.bias", "head.1.bias"]
        );
    }
}
