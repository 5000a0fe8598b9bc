# SPDX-License-Identifier: Apache-2.0
"""The parts of ``train_toy_animals.py``: its pictures, its losses, its optimisers."""
