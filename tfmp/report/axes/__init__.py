"""What a report says of each axis of robustness.json: modules of one form.

Each has TITLE; `blocks(source, axis, data)`, what its section shows; `say(source, axis, data)`,
its outcome in sentences; and `headlines(source, axis, data)`, pairs of a key and (name, number), of
what is compared with other runs.
"""
