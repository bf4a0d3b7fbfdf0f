"""Files written whole, tables, how a program ends, processes that work as one."""
