"""The programs that are compared: each module trains as the task says and writes down what it measured.

python -m benchmarks.contestants.NAME task.json result.json
"""
