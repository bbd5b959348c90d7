"""Exports of annotation tools, written anew as data sets that runs read."""
