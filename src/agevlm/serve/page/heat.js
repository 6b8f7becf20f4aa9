// A map of attention as colours over a picture. Knows numbers and a canvas.

// The colour map inferno between a quarter and nearly its end, as the pictures that `agevlm look` draws.
const STOPS = [
  [87, 16, 110], [136, 34, 106], [187, 55, 84], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 240, 140],
];
const SIDE = 160; // pixels that are computed along the longer side; the browser smooths the rest

function colour(strength) {
  const place = Math.min(Math.max(strength, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((value, channel) => value + (place - low) * (STOPS[low + 1][channel] - value));
}

// Full strength is the map's own maximum, but at least four times the even share of a cell: what looks nowhere in
// particular stays faint.
function fullStrength(map) {
  return Math.max(...map.flat(), 4 / (map.length * map[0].length));
}

// The value at (y, x) in cells; beyond the outermost centres it is constant.
function between(map, y, x) {
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  const [fy, fx] = [clamp(y, map.length - 1), clamp(x, map[0].length - 1)];
  const [y0, x0] = [Math.floor(fy), Math.floor(fx)];
  const [y1, x1] = [Math.min(y0 + 1, map.length - 1), Math.min(x0 + 1, map[0].length - 1)];
  const top = map[y0][x0] + (fx - x0) * (map[y0][x1] - map[y0][x0]);
  const foot = map[y1][x0] + (fx - x0) * (map[y1][x1] - map[y1][x0]);
  return top + (fy - y0) * (foot - top);
}

// Draws a map over a whole canvas, whose width and height are set here to the picture's shape. What found no place is
// faint: with half of its attention on the picture a word glows a quarter as bright as with all of it.
export function drawHeat(canvas, map, width, height) {
  const scale = SIDE / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const full = fullStrength(map);
  const opacity = 0.85 * Math.min(1, total(map)) ** 2;
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const row = ((y + 0.5) / canvas.height) * map.length - 0.5;
      const column = ((x + 0.5) / canvas.width) * map[0].length - 0.5;
      const strength = between(map, row, column) / full;
      const at = 4 * (y * canvas.width + x);
      pixels.data.set(colour(strength), at);
      pixels.data[at + 3] = 255 * opacity * Math.min(1, 1.5 * strength);
    }
  }
  context.putImageData(pixels, 0, 0);
}

export function clearHeat(canvas) {
  canvas.width = canvas.width;
}

// Whether no cell has twice its even part of what is on the picture.
export function isEven(map) {
  return Math.max(...map.flat()) * map.length * map[0].length < 2 * total(map);
}

function total(map) {
  return map.flat().reduce((sum, share) => sum + share, 0);
}
