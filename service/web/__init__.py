"""HTTP in and out; the only room that knows Flask. No policy, no arithmetic, no provider knowledge beyond which route is whose."""
