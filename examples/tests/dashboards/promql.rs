//! Finds the metrics and labels of a PromQL query, and the functions around them.

/// A use of a metric in a query.
#[derive(Debug, PartialEq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// The labels, and the texts that they are compared with.
    pub(crate) matchers: Vec<(String, String)>,
    /// The functions and aggregations around it, the innermost last.
    pub(crate) inside: Vec<String>,
}

/// The names in a query.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Names {
    pub(crate) selectors: Vec<Selector>,
    /// The labels of `by`, `on` and similar clauses.
    pub(crate) grouped: Vec<String>,
    /// The labels that `count_values` makes.
    pub(crate) made: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Mark(char),
}

/// Reads a query.
pub(crate) fn names(query: &str) -> Names {
    let mut rest = Tokens { list: tokens(query), at: 0, query };
    let (mut names, mut around, mut called) = (Names::default(), Vec::new(), None);
    while let Some(token) = rest.next() {
        match token {
            Token::Mark('(') => around.push(called.take().unwrap_or_default()),
            Token::Mark(')') => drop(around.pop().unwrap_or_else(|| panic!("a ) too many in {query}"))),
            // The range of a selector, or the range and the step of a subquery.
            Token::Mark('[') => {
                while rest.next().unwrap_or_else(|| panic!("a [ without ] in {query}")) != Token::Mark(']') {}
            }
            Token::Text(label) if around.last().is_some_and(|of: &String| of == "count_values") => {
                names.made.push(label);
            }
            Token::Word(word) => match &*word {
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                    names.grouped.extend(rest.labels());
                }
                "and" | "or" | "unless" | "bool" | "offset" => {}
                _ if rest.is('(') || rest.is_word("by") || rest.is_word("without") => called = Some(word),
                _ if word.starts_with(|c: char| c.is_ascii_digit()) => {}
                _ => {
                    let inside = around.iter().filter(|of| !of.is_empty()).cloned().collect();
                    names.selectors.push(Selector { metric: word, matchers: rest.matchers(), inside });
                }
            },
            Token::Text(_) | Token::Mark(_) => {}
        }
    }
    assert!(around.is_empty(), "a ( too many in {query}");
    names
}

struct Tokens<'a> {
    list: Vec<Token>,
    at: usize,
    query: &'a str,
}

impl Tokens<'_> {
    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.list.get(self.at - 1).cloned()
    }

    fn is(&self, mark: char) -> bool {
        self.list.get(self.at) == Some(&Token::Mark(mark))
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.list.get(self.at), Some(Token::Word(next)) if next == word)
    }

    /// Reads `(a, b)`, or nothing.
    fn labels(&mut self) -> Vec<String> {
        let mut labels = Vec::new();
        if self.is('(') {
            self.at += 1;
            loop {
                match self.next() {
                    Some(Token::Word(label)) => labels.push(label),
                    Some(Token::Mark(',')) => {}
                    Some(Token::Mark(')')) => break,
                    other => panic!("{other:?} among the labels of {}", self.query),
                }
            }
        }
        labels
    }

    /// Reads `{a="x", b=~"y"}`, or nothing.
    fn matchers(&mut self) -> Vec<(String, String)> {
        let mut matchers = Vec::new();
        if self.is('{') {
            self.at += 1;
            let mut label = String::new();
            loop {
                match self.next() {
                    Some(Token::Word(word)) => label = word,
                    Some(Token::Text(text)) => matchers.push((std::mem::take(&mut label), text)),
                    Some(Token::Mark('}')) => break,
                    Some(Token::Mark('=' | '~' | '!' | ',')) => {}
                    other => panic!("{other:?} among the matchers of {}", self.query),
                }
            }
        }
        matchers
    }
}

fn tokens(query: &str) -> Vec<Token> {
    let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$' | '.');
    let (mut list, mut rest) = (Vec::new(), query.trim_start());
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').unwrap_or_else(|| panic!("a text without end in {query}"));
            list.push(Token::Text(rest[1..=end].to_owned()));
            rest = &rest[end + 2..];
        } else if in_word(first) {
            let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
            list.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else {
            list.push(Token::Mark(first));
            rest = &rest[first.len_utf8()..];
        }
        rest = rest.trim_start();
    }
    list
}

#[test]
fn query_is_parsed() {
    let query = r#"histogram_quantile(0.95, sum by (stage, le) (rate(a_bucket{stage=~"$stage", split!="x"}[$__rate_interval])))
        / on (job) group_left (version) (b:c > 1.5) and f(d)[1h:5m] offset 5m or count_values("n", e)"#;
    let selector = |metric: &str, matchers: &[(&str, &str)], inside: &[&str]| Selector {
        metric: metric.to_owned(),
        matchers: matchers.iter().map(|&(label, text)| (label.to_owned(), text.to_owned())).collect(),
        inside: inside.iter().map(|&of| of.to_owned()).collect(),
    };
    let (around, matchers) = (["histogram_quantile", "sum", "rate"], [("stage", "$stage"), ("split", "x")]);
    let expected = Names {
        selectors: vec![
            selector("a_bucket", &matchers, &around),
            selector("b:c", &[], &[]),
            selector("d", &[], &["f"]),
            selector("e", &[], &["count_values"]),
        ],
        grouped: ["stage", "le", "job", "version"].map(str::to_owned).to_vec(),
        made: vec!["n".to_owned()],
    };
    assert_eq!(names(query), expected);
}
