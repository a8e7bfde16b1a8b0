//! Colours for light and dark pages.

/// The colours of curves. They differ in brightness, for people who distinguish few colours.
const LIGHT: [&str; 10] =
    ["#1769aa", "#d07a00", "#00805d", "#b5396b", "#6d4ba3", "#6b7d14", "#0e8aa6", "#8c5a3c", "#55657a", "#d14343"];
const DARK: [&str; 10] =
    ["#5aa9e6", "#f0a841", "#3cc49b", "#ef7fae", "#ae92e6", "#b6c94e", "#4fc4de", "#cc9a78", "#a3b1c4", "#f38a8a"];

/// The number of colours, which repeat after the last one.
pub(super) const COLOURS: usize = LIGHT.len();

/// Returns the style sheet of plots, for a light or a dark page.
pub(crate) fn style(dark: bool) -> String {
    let (paper, text, faint, grid, colours) = match dark {
        false => ("#ffffff", "#0f172a", "#5b6b80", "#e2e8f0", LIGHT),
        true => ("#161d29", "#e5eaf1", "#9aa8ba", "#2b3646", DARK),
    };
    let mut sheet = format!(
        ".plot-paper{{fill:{paper}}}.plot-title{{fill:{text}}}.plot-label{{fill:{faint}}}\
         .plot-grid{{stroke:{grid};fill:none}}.plot-axis{{stroke:{faint};fill:none}}"
    );
    for (n, colour) in colours.iter().enumerate() {
        sheet += &format!(".plot-line{n}{{stroke:{colour};fill:none}}.plot-dot{n}{{fill:{colour}}}");
    }
    sheet
}
