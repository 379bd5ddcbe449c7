//! The clip the honest tenant encodes: a deterministic picture with grain, a pan and a moving object.
//!
//! Written as YUV4MPEG2 (`C420jpeg`: a full-size luma plane, then two chroma planes of half its width and height,
//! per frame), which x264 reads by itself. Grain keeps the encoder at work as a camera's picture would.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};

const WIDTH: usize = 640;
const HEIGHT: usize = 360;
const FRAMES: usize = 100;
/// Side of the square picture that is panned over; a power of two, larger than a frame is wide.
const CANVAS: usize = 1024;
/// Side of the moving object.
const OBJECT: usize = 96;

/// Writes the clip (about 35 MB).
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        writeln!(file, "YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C420jpeg")?;
        let canvas = canvas();
        for frame in 0..FRAMES {
            file.write_all(b"FRAME\n")?;
            file.write_all(&luma(&canvas, frame))?;
            for shift in [0, CANVAS / 2] {
                file.write_all(&chroma(&canvas, frame, shift))?;
            }
        }
        file.flush()
    };
    write().with_context(|| format!("cannot write the demo's clip {}", path.display()))
}

/// Shading with grain, repeating at its edges.
fn canvas() -> Vec<u8> {
    // Numerical Recipes' linear congruential generator: grain needs no better, and is the same each time.
    let mut grain = 1_u32;
    (0..CANVAS * CANVAS)
        .map(|at| {
            grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (x, y) = (at % CANVAS, at / CANVAS);
            let shade = triangle(x, 256) / 2 + triangle(y, 128) / 3;
            // The generator's highest bits are its best: 0 to 15.
            let noise = usize::from(grain.to_be_bytes()[0] >> 4);
            u8::try_from(40 + shade + noise).unwrap_or(u8::MAX)
        })
        .collect()
}

/// A wave of the given period that rises and falls between 0 and 128.
fn triangle(at: usize, period: usize) -> usize {
    let phase = at % period;
    phase.min(period - phase) * 256 / period
}

fn luma(canvas: &[u8], frame: usize) -> Vec<u8> {
    let mut plane = Vec::with_capacity(WIDTH * HEIGHT);
    for y in 0..HEIGHT {
        plane.extend((0..WIDTH).map(|x| canvas[at(x + 3 * frame, y + frame)]));
    }
    // The object moves against the pan.
    let (left, top) = (
        (5 * frame) % (WIDTH - OBJECT),
        (2 * frame) % (HEIGHT - OBJECT),
    );
    for y in 0..OBJECT {
        for x in 0..OBJECT {
            plane[(top + y) * WIDTH + left + x] = 255 - canvas[at(x, y)];
        }
    }
    plane
}

fn chroma(canvas: &[u8], frame: usize, shift: usize) -> Vec<u8> {
    let mut plane = Vec::with_capacity(WIDTH * HEIGHT / 4);
    for y in 0..HEIGHT / 2 {
        plane.extend((0..WIDTH / 2).map(|x| canvas[at(x + frame + shift, y)]));
    }
    plane
}

fn at(x: usize, y: usize) -> usize {
    (y % CANVAS) * CANVAS + x % CANVAS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_whole_and_moves() {
        let canvas = canvas();
        let [first, second] = [0, 1].map(|frame| luma(&canvas, frame));
        assert_eq!(first.len(), WIDTH * HEIGHT);
        assert_ne!(first, second);
        assert_eq!(chroma(&canvas, 0, 0).len(), WIDTH * HEIGHT / 4);
        assert_eq!(luma(&canvas, 1), second);
    }
}
