//! Tables in plain text.

/// Columns two blanks apart and as wide as they need, one line a row. Names in `left` begin at the
/// left edge of their column, all else ends at the right one, as numbers shall.
///
/// `groups` are titles above the first row, each over some neighbouring columns: where they begin,
/// how many they are, the title.
pub(crate) fn render<const N: usize>(groups: &[(usize, usize, &str)], left: [bool; N], rows: &[[String; N]]) -> String {
    let mut widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    // A title wider than its columns widens the first of them.
    for &(from, count, title) in groups {
        let under = widths[from..from + count].iter().sum::<usize>() + GAP * (count - 1);
        widths[from] += title.len().saturating_sub(under);
    }
    let mut text = String::new();
    if !groups.is_empty() {
        let mut line = String::new();
        for &(from, count, title) in groups {
            let end = widths[..from + count].iter().map(|w| w + GAP).sum::<usize>() - GAP;
            let begin = widths[..from].iter().map(|w| w + GAP).sum::<usize>();
            let rule = format!("{title:-^width$}", width = end - begin);
            line += &format!("{:width$}{rule}", "", width = begin - line.chars().count());
        }
        text += &line;
        text.push('\n');
    }
    for row in rows {
        let mut line = String::new();
        for ((cell, width), left) in row.iter().zip(widths).zip(left) {
            line += &if left {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            };
            line += &" ".repeat(GAP);
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_and_titles_span_where_their_columns_do() {
        let rows = [["name", "a", "b", "c"], ["x", "1000", "2", "30"]].map(|row| row.map(str::to_owned));
        let left = [true, false, false, false];
        assert_eq!(
            render(&[(1, 2, "ab"), (3, 1, "wide")], left, &rows),
            "      --ab---  wide\nname     a  b     c\nx     1000  2    30\n"
        );
        assert_eq!(render(&[], left, &rows), "name     a  b   c\nx     1000  2  30\n");
    }
}
