"""What several methods share: memories, teachers, statistics, closed forms. Taken by import, or as a base."""
