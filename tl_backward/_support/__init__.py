"""What every part uses, and knows no model: types, checks and the wording of errors, HTML, CSV, storage, intervals."""
