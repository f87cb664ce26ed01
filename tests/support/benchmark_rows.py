"""Rows of vision-language benchmarks, written for the tests in the format of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
YES_NO = ("Yes", "No")


def mme(n: int, image: str) -> Row:
    category = ["existence", "existence", "OCR", "OCR", "code_reasoning", "code_reasoning", "color", "color"][
        n % 8
    ]
    question = f"Is there a circle ({n})? Please answer yes or no."
    return {
        "question_id": f"{category}/{n // 2}.png", "image": image, "question": question,
        "answer": YES_NO[n % 2], "category": category,
    }  # fmt: skip


def pope(n: int, image: str) -> Row:
    return {
        "id": str(n), "question_id": str(n), "question": f"Is there a circle in the image ({n})?",
        "answer": ["yes", "no"][n % 2], "image_source": f"val_{n // 2}", "image": image,
        "category": ["adversarial", "popular", "random"][n % 3],
    }  # fmt: skip


def mmstar(n: int, image: str) -> Row:
    return {
        "index": n, "question": f"Which one? ({n})\nOptions: A: one, B: two, C: three, D: four", "image": image,
        "answer": "ABCD"[n % 4], "category": ["math", "logical reasoning"][n % 2],
        "l2_category": ["geometry", "diagram reasoning"][n % 2], "meta_info": {"source": "x"},
    }  # fmt: skip


def mmbench(n: int, image: str) -> Row:
    return {
        "index": n, "question": f"Which colour? ({n})", "hint": "nan", "answer": "ABCD"[n % 4], "A": "red",
        "B": "green", "C": "blue", "D": "nan", "category": ["object_localization", "image_scene"][n % 2],
        "image": image, "source": "x", "L2-category": "coarse_perception", "comment": "nan", "split": "dev",
    }  # fmt: skip


def mmmu(n: int, image: str) -> Row:
    choice = n % 3 != 2
    return {
        "id": f"validation_{['Art_Theory', 'Math'][n % 2]}_{n}", "question": f"What is in <image 1>? ({n})",
        "options": "['a circle', 'a square', 'a line']" if choice else "[]", "explanation": "",
        "question_type": "multiple-choice" if choice else "open", "answer": "ABC"[n % 3] if choice else "3",
        "image_1": image,
    }  # fmt: skip


def chartqa(n: int, image: str) -> Row:
    return {
        "type": ["human_test", "augmented_test"][n % 2], "question": f"How many? ({n})", "image": image,
        "answer": ["yes", "7", "12%", "3.1"][n % 4],
    }  # fmt: skip


def textvqa(n: int, image: str) -> Row:
    answers = ["red"] * (n % 4) + ["Square."] * (10 - n % 4)
    return {
        "image_id": str(n // 2), "question_id": n, "question": f"what colour is it ({n})?", "image": image,
        "answers": answers, "ocr_tokens": [],
    }  # fmt: skip


def gqa(n: int, image: str) -> Row:
    return {
        "id": str(n),
        "imageId": str(n // 2),
        "question": f"What is it ({n})?",
        "answer": ["square", "no", "red"][n % 3],
    }


def gqa_image(n: int, image: str) -> Row:
    return {"id": str(n), "image": image}


def ai2d(n: int, image: str) -> Row:
    return {
        "question": f"Which part ({n})?",
        "options": ["leaf", "root", "stem", "seed"],
        "answer": str(n % 4),
        "image": image,
    }


def scienceqa(n: int, image: str) -> Row:
    return {
        "image": None if n == 3 else image, "question": f"Which is solid ({n})?", "choices": ["air", "ice", "sea"],
        "answer": n % 3, "hint": "", "topic": ["physics", "biology"][n % 2], "subject": "natural science",
    }  # fmt: skip


def hallusion(n: int, image: str) -> Row:
    return {
        "category": ["VD", "VS"][n % 2], "subcategory": ["figure", "table"][n % 2], "visual_input": "1",
        "set_id": str(n // 4), "figure_id": str(1 + n // 2), "question_id": str(n % 2),
        "question": f"Is the left circle bigger ({n})?",
        "gt_answer_details": "It is.", "gt_answer": str(n // 2 % 2), "filename": "x.png", "image": image,
    }  # fmt: skip


def mathvista(n: int, image: str) -> Row:
    choice = n % 2 == 0
    return {
        "pid": str(n), "question": f"How long ({n})?", "query": f"How long ({n})?", "image": f"images/{n}.jpg",
        "decoded_image": image, "choices": ["3 cm", "7 cm", "5 cm", "1 cm"] if choice else None, "unit": None,
        "precision": None if choice else 1.0, "answer": ["3 cm", "7 cm"][n // 2 % 2] if choice else "3",
        "question_type": "multi_choice" if choice else "free_form", "answer_type": "text" if choice else "integer",
        "metadata": {
            "category": "math", "context": "x", "grade": "x", "img_height": 1, "img_width": 1, "language": "english",
            "skills": ["geometry"], "source": "x", "split": "testmini", "task": ["word problem", "geometry"][n % 2],
        },
    }  # fmt: skip


def seedbench(n: int, image: str) -> Row:
    return {
        "question_id": str(n), "data_type": "image", "question": f"How many ({n})?", "answer": "ABCD"[n % 4],
        "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "many more", "image": [image],
    }  # fmt: skip


def docvqa(n: int, image: str) -> Row:
    return {
        "questionId": str(n), "docId": n // 2, "question": f"Which colour ({n})?", "image": image,
        "answers": [["reds", "blue"], ["B"]][n % 2],
    }  # fmt: skip


def refcoco(n: int, image: str) -> Row:
    return {
        "question_id": str(n), "question": "Where?", "answer": ["the circle"], "bbox": [2.0, 3.0, 10.0, 12.0],
        "file_name": f"{n}.jpg", "image": image, "segmentation": [1.0], "iscrowd": 0,
    }  # fmt: skip


BENCHMARKS: dict[str, tuple[dict[str, Callable[[int, str], Row]], tuple[str, ...]]] = {
    "mme": ({"lmms-lab-encoder/MME/test": mme}, ("mme_perception_score,none", "mme_cognition_score,none")),
    "pope": ({"lmms-lab-encoder/POPE/test": pope}, ("pope_accuracy,none", "pope_f1_score,none")),
    "mmstar": ({"Lin-Chen/MMStar/val": mmstar}, ("average,none", "math,none")),
    "mmbench_en_dev_static": ({"lmms-lab-encoder/MMBench/en/dev": mmbench}, ("gpt_eval_score,none",)),
    "mmmu_val": ({"lmms-lab-encoder/MMMU/validation": mmmu}, ("mmmu_acc,none",)),
    "chartqa": (
        {"lmms-lab-encoder/ChartQA/test": chartqa},
        ("relaxed_overall,none", "relaxed_human_split,none"),
    ),
    "textvqa_val": ({"lmms-lab-encoder/textvqa/validation": textvqa}, ("exact_match,none",)),
    "gqa": (
        {
            "lmms-lab-encoder/GQA/testdev_balanced_instructions/testdev": gqa,
            "lmms-lab-encoder/GQA/testdev_balanced_images/testdev": gqa_image,
        },
        ("exact_match,none",),
    ),
    "seedbench_ppl": ({"lmms-lab-encoder/SEED-Bench/test": seedbench}, ("acc,none",)),
    "docvqa_val": ({"lmms-lab-encoder/DocVQA/DocVQA/validation": docvqa}, ("anls,none",)),
    "refcoco_bbox_rec_val": ({"lmms-lab-encoder/RefCOCO/val": refcoco}, ("refcoco_ACC@0.5,none",)),
    "ai2d": ({"lmms-lab-encoder/ai2d/test": ai2d}, ("exact_match,flexible-extract",)),
    "scienceqa_img": ({"lmms-lab-encoder/ScienceQA/ScienceQA-IMG/test": scienceqa}, ("exact_match,none",)),
    "hallusion_bench_image": (
        {"lmms-lab-encoder/HallusionBench/image": hallusion},
        ("aAcc,none", "qAcc,none", "fAcc,none"),
    ),
    "mathvista_testmini_format": ({"AI4Math/MathVista/testmini": mathvista}, ("llm_as_judge_eval,none",)),
}
"""By lmms-eval's name: its files with the rows in them, and metrics that it has."""
