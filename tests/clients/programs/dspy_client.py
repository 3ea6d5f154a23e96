"""DSPy: a signature with typed fields."""

import sys

import dspy

URL, MODEL = sys.argv[1:]
lm = dspy.LM(f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", temperature=0, max_tokens=200, cache=False)
assert "Paris" in lm("What is the capital city of France?")[0]
dspy.configure(lm=lm, adapter=dspy.JSONAdapter())
answer = dspy.Predict("question -> answer")(question="What is the capital city of France?")
assert answer.answer, answer
