//! The Common Expression Language, as far as its types go: what an expression would give, and what is wrong with it. Nothing is evaluated.

mod checker;
mod functions;
mod lexer;
mod parser;
mod syntax;
#[cfg(test)]
mod tests;
mod types;

use std::collections::HashMap;

pub use checker::Issue;
pub use parser::SyntaxError;
pub use types::Type;

/// A longer line is not shown in a message. Upstream: cel-go's `maxSnippetLength`.
const MAX_SNIPPET: usize = 16384;

/// What an expression gives with these variables, and what is wrong with it.
///
/// # Errors
/// When it is not in the language, as far as the language is known here.
pub fn check(
    text: &str,
    variables: &HashMap<String, Type>,
) -> Result<(Type, Vec<Issue>), SyntaxError> {
    Ok(checker::check(&parser::parse(text)?, variables))
}

/// Issues as upstream shows them: with the line they are in and a mark below it. Upstream: cel-go's `Errors.ToDisplayString`.
pub fn display(text: &str, issues: &[Issue]) -> String {
    let shown: Vec<String> = issues.iter().map(|issue| show(text, issue)).collect();
    shown.join("\n")
}

fn show(text: &str, issue: &Issue) -> String {
    let before = text.chars().take(issue.at);
    let (mut line, mut column) = (1, 0);
    for c in before {
        (line, column) = if c == '\n' {
            (line + 1, 0)
        } else {
            (line, column + 1)
        };
    }
    let mut shown = format!("ERROR: <input>:{line}:{}: {}", column + 1, issue.message);
    let snippet = text.split('\n').nth(line - 1).unwrap_or_default();
    if snippet.len() <= MAX_SNIPPET {
        let snippet = snippet.replace('\t', " ");
        let dots: String = snippet
            .chars()
            .take(column)
            .map(|c| if c.is_ascii() { '.' } else { '\u{ff0e}' })
            .collect();
        let wide = snippet.chars().nth(column).is_some_and(|c| !c.is_ascii());
        let mark = if wide { '\u{ff3e}' } else { '^' };
        shown += &format!("\n | {snippet}\n | {dots}{mark}");
    }
    shown
}
