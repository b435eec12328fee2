"""From words of a command to finished tasks: configuration, plan, refusals, execution."""
