"""The lint's rules: functions by what they look at, and the table that names each of them."""
