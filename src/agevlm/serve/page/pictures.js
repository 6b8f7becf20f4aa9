// From a file to a picture that can be sent: {url, width, height, title}. Nothing leaves the page here.

const MAX_PIXELS = 4e6; // larger pictures are sent smaller: models see less than that
const MAX_BYTES = 8e6;
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This"} is no picture that the browser can read.`);
  }
  const { width, height } = bitmap;
  const fits = width * height <= MAX_PIXELS && file.size <= MAX_BYTES && SENT_AS_THEY_ARE.includes(file.type);
  const url = fits ? await dataUrl(file) : scaled(bitmap);
  bitmap.close();
  return { url, width, height, title: file.name || "a pasted picture" };
}

function scaled(bitmap) {
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

// The first picture among what was dropped or pasted; null where there is none.
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0] ?? null;
}
