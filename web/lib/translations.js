/** Translations of the scripts' texts. The English text is the key, and is used if there is no translation. */

import { app } from "../../../scripts/app.js";

const CHINESE = {
  frame: "帧",
  step: "步",
  "Guidance weight of each frame": "每一帧的引导权重",
  "Noise level of each step": "每一步的噪声水平",
  "linked values are used": "由连接的值决定",
  "sigma_min must be below sigma_max": "sigma_min 必须小于 sigma_max",
  "much larger than 1024x576, which SVD was trained at": "远大于 SVD 的训练尺寸 1024x576",
  "much smaller than 1024x576, which SVD was trained at": "远小于 SVD 的训练尺寸 1024x576",
  "SVD-XT was trained on 25 frames, SVD on 14": "SVD-XT 以 25 帧训练，SVD 以 14 帧训练",
  "SVD was trained on 5 to 30 frames per second": "SVD 以每秒 5 到 30 帧训练",
  "SVD was trained on buckets up to 255": "SVD 的运动桶训练范围不超过 255",
  "so much noise hides the image from the model": "噪声过大，模型将看不清图像",
  "SVD was trained up to 700": "SVD 的训练上限是 700",
  "for few steps choose align_your_steps": "步数较少时请选择 align_your_steps",
  "for dpmpp_2m on less than 15 steps choose align_your_steps": "dpmpp_2m 少于 15 步时请选择 align_your_steps",
  "animate_lcm is made for 1 to 8 steps": "animate_lcm 适用于 1 到 8 步",
  "animate_lcm has at most 40 steps": "animate_lcm 最多 40 步",
  "guidance above 6 oversaturates colors; 2.5 to 3 is usual": "引导超过 6 会使颜色过曝，通常为 2.5 到 3",
  "SVD presets": "SVD 预设",
  "SVD: 14 frames, guidance 1 to 2.5": "SVD：14 帧，引导 1 到 2.5",
  "SVD-XT and 1.1: 25 frames, guidance 1.5 to 3": "SVD-XT 与 1.1：25 帧，引导 1.5 到 3",
  "1024 x 576, as trained": "1024 x 576，训练尺寸",
  "576 x 1024, portrait": "576 x 1024，竖幅",
  "768 x 768, square": "768 x 768，方形",
  "768 x 448, less memory": "768 x 448，较省内存",
  "512 x 320, little memory": "512 x 320，很省内存",
  "320 x 512, portrait, little memory": "320 x 512，竖幅，很省内存",
};

const LANGUAGES = { zh: CHINESE };

/** Translate a text to the language of the page. */
export function translate(english) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return LANGUAGES[language]?.[english] ?? english;
}
