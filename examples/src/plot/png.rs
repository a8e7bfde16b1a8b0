//! Renders pictures as PNG, with a font that is part of the program, so that they look the same on every machine.

use interlock::{Error, Result};
use resvg::{
    render,
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree},
};

/// The font; its licence is in the same folder.
const FONT: &[u8] = include_bytes!("../../fonts/DejaVuSans.ttf");
const FAMILY: &str = "DejaVu Sans";

/// Renders the picture `svg` at twice its size.
///
/// # Errors
/// If `svg` is not a picture.
pub(crate) fn png(svg: &str) -> Result<Vec<u8>> {
    const SCALE: f32 = 2.0;
    let broken = |why: String| Error::invalid("a picture", why, "this is a defect; please report it");
    let mut options = Options { font_family: FAMILY.to_owned(), ..Options::default() };
    options.fontdb_mut().load_font_data(FONT.to_vec());
    options.fontdb_mut().set_sans_serif_family(FAMILY);
    let tree = Tree::from_str(svg, &options).map_err(|e| broken(e.to_string()))?;
    let size = tree.size();
    let (width, height) = ((size.width() * SCALE).ceil() as u32, (size.height() * SCALE).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| broken(format!("{width}×{height} pixels")))?;
    render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Axis, Line, Plot, Series};

    fn picture(name: &str, points: Vec<(f64, f64)>) -> Vec<u8> {
        let series = Series { name: name.to_owned(), colour: 13, line: Line::Dotted, points };
        let plot = Plot {
            name: "a".to_owned(),
            title: "<&>".to_owned(),
            x: Axis::new("step"),
            y: Axis::new("loss"),
            series: vec![series],
        };
        png(&plot.to_svg()).unwrap()
    }

    #[test]
    fn pictures_have_text_and_curves_even_with_non_finite_points() {
        let one = picture("a", vec![(0.0, 1.0), (1.0, 2.0)]);
        assert_eq!(one[..8], *b"\x89PNG\r\n\x1a\n");
        assert_eq!(one[16..24], [0, 0, 5, 0, 0, 0, 2, 188]);
        assert_ne!(one, picture("abc", vec![(0.0, 1.0), (1.0, 2.0)]), "no text is drawn");
        assert_ne!(one, picture("a", vec![(0.0, 2.0), (1.0, 1.0)]), "no curve is drawn");
        picture("a", vec![]);
        picture("a", vec![(0.0, f64::NAN), (f64::INFINITY, 1.0)]);
        picture("a", vec![(3.0, -0.0)]);
        assert!(png("<svg").is_err());
    }
}
